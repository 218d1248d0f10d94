from model_zoo.TF4CTR_AFN.TF4CTR_AFN import TF4CTR_AFN

__all__ = ["TF4CTR_AFN"]
