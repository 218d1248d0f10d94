from model_zoo.TF4CTR_NFM.TF4CTR_NFM import TF4CTR_NFM

__all__ = ["TF4CTR_NFM"]
