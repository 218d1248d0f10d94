from model_zoo.TF4CTR_DCN.TF4CTR_DCN import TF4CTR_DCN

__all__ = ["TF4CTR_DCN"]
