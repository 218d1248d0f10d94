from model_zoo.TF4CTR_QNN.TF4CTR_QNN import TF4CTR_QNN

__all__ = ["TF4CTR_QNN"]
